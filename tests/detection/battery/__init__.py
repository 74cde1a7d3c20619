"""The detection battery: faults of known size planted in artifacts and devices, and whether the product finds them."""
