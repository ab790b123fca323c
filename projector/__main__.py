"""`python -m projector [serve | migrate | blockers | end-session PID]`"""

from tandem.runtime.start import start

if __name__ == "__main__":
    start("projector.program")
