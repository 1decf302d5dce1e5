"""The client side of modelledger: a typed client (client.py), the command line (cli/), and the generated stubs."""

__version__ = "0.1.0"
