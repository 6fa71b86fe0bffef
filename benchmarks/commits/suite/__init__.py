"""What asv runs. The cases are the working tree's, gce is the commit's."""
