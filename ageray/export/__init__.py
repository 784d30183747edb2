"""The command `export`: a model as a file for other programs, ONNX or torch.export. Start at
`ageray.export.run`."""
