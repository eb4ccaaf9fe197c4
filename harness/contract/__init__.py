# SPDX-License-Identifier: MIT
"""What is promised, what was found, and who decides."""
