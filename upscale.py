from cli import upscale

if __name__ == "__main__":
    upscale()
