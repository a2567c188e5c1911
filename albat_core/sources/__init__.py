"""Where rows come from: files of many formats, tables and folders of pictures."""
