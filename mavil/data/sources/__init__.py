"""Where clips come from: folders, CSV, and the lists of public datasets, all read into one :class:`Listing`."""
