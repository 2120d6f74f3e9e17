"""ONNX files brought to an older opset, one pass an op."""
