# SPDX-License-Identifier: MIT
"""How hard property tests try: quick by default, ``HYPOTHESIS_PROFILE=thorough`` for the nightly run."""

import os

from hypothesis import HealthCheck, settings

# No example database: a read-only checkout is no reason to fail, and a failure prints how to repeat it.
_COMMON = {
    "deadline": None,  # these machines are noisy
    "database": None,
    "suppress_health_check": [HealthCheck.function_scoped_fixture],
}
settings.register_profile("quick", max_examples=20, **_COMMON)
settings.register_profile("thorough", max_examples=1000, **_COMMON)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))
