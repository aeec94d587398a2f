"""The stages that make the bundled demo model; scripts/train_demo.py runs them."""
