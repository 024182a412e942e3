"""The torch code of the methods; the member files beside this folder import it only when they attach."""
