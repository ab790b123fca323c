"""`python -m command_server [serve | migrate | begin-epoch | restore LEDGER… | archive | archive-plan | …]`"""

from tandem.runtime.start import start

if __name__ == "__main__":
    start("command_server.program")
