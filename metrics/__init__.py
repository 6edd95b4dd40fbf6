"""What torchmetrics lacks: image quality and landmark errors as the field reports them."""
