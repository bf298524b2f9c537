"""What `python main.py` offers beside training: each module or package here has `main(arguments) -> exit code`."""
