"""How the sets of the field hold their labels: a reader for each layout, chosen by `data.layout` (`ageray.prepare.sources`)."""
