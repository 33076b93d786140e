"""``python -m nanovlm`` is ``nanovlm``; ``torchrun -m nanovlm train ...`` needs it."""

from nanovlm.cli import main

if __name__ == "__main__":
    main()
