"""What holds for every test: nothing is sent anywhere, and no test speaks to a W&B that a developer is logged in to."""

import os

os.environ["WANDB_MODE"] = "disabled"
os.environ.pop("WANDB_API_KEY", None)
os.environ.pop("RAY_ADDRESS", None)
