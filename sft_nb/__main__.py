"`python -m sft_nb` is the command `sft_nb`"
import sys
from .cli import main

sys.exit(main())
