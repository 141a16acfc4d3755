"""Settings of the whole suite: two test processes share two cores and one disk, and any machine may be busy."""

import os

from hypothesis import settings

# One thread each, or they wait for one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Nothing here has to outlast a power cut. Waiting for the disk took as long as all the rest of a small training.
os.fsync = lambda file: None

settings.register_profile("busy", settings(), deadline=None)
settings.load_profile("busy")
