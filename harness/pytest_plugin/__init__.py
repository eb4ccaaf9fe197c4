# SPDX-License-Identifier: MIT
"""What the pytest door is made of; `harness.plugin` is the door itself: its hooks and its fixtures."""
