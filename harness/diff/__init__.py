"""What changed between two runs: their cases, their numbers beyond noise, and the machines they ran on."""
