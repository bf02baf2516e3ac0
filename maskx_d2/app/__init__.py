"""The web page of ``maskx app``."""
