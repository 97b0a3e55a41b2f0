"""The command that recipes/demo/search.json names. The search for the demo's learning rates is the study's own now:

    widestream study run demo --search        # about 40 minutes on two cores

The same grid, length and seed for both models, on the demo's data. Its record is runs/demo-search/demo.study.json; the
shipped one stays as it is.
"""

import sys

from widestream.cli import main

if __name__ == "__main__":
    sys.argv[1:] = ["study", "run", "demo", "--search"]
    main()
