"""What the script make_base trains: the pool of scenes, tokenizer, autoencoder, U-Net and text encoder."""
