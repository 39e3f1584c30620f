"""From a prompt to a completion: engines behind one protocol, and conversations held with them."""
