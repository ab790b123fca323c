"""`python -m query_server [serve]`"""

from tandem.runtime.start import start

if __name__ == "__main__":
    start("query_server.program")
