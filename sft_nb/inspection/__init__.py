"Predictions, rows and their evidence, for the eye"
