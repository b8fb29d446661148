"""What several test modules share: models, data sets, devices."""
