"""On PYTHONPATH this hides obstore, so that s3:// is served by s3fs also in processes that a test starts."""

import sys

sys.modules["obstore"] = None  # type: ignore[assignment]
