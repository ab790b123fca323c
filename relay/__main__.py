"""`python -m relay [serve]`"""

from tandem.runtime.start import start

if __name__ == "__main__":
    start("relay.program")
