"""The flags of `docker run`: what is said of each, and what shows that it is so."""

import pytest

pytest.register_assert_rewrite(f"{__name__}.life", f"{__name__}.means")
