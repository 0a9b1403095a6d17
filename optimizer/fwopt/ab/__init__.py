"""Two servers held against each other: the same items and the same requests, alternately, in blinded order."""
