"""What a trained model does on a prompt: `widestream lens`. `prompt.py` finds it, `section.py` shows it."""
