import sys

from sandbox.payme_app.instance import main

sys.exit(main())
