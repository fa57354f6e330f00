"""How two nodes talk before they have a pipe: transports, and the router above them."""
