"""Export a trained model to ONNX, OpenVINO, torch.export or AOTInductor, and run such files."""
