# A package, since of a __main__.py the processes that are forked from here do not run the code again.
import sys

from bench.crash_matrix import main

sys.exit(main())
