"""`python -m luthier.cli`"""

from luthier.cli.app import main

main()
