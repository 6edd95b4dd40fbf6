from datamodules.face_pack import main

if __name__ == "__main__":
    main()
