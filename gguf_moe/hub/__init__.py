"""Models of Hugging Face's hub: their names, where they lie on this machine, and how they get there."""
