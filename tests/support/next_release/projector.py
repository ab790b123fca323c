"""The next release's projector."""

from tests.support.next_release import run

if __name__ == "__main__":
    run("projector")
