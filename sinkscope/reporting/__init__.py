"""The report: what is measured for it (`gather`), what it shows, its page, and how it is saved and opened again.

Opening a saved report needs no torch.
"""

import sinkscope.figures  # noqa: F401  (before anything else imports matplotlib: see figures/fonts.py)
