class Strategy:
    name = "wgx_not_a_plugin"
    transport = "tcp"
