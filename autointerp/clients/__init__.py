"""Who answers requests, one file each: found by file name, made by the module's `create`."""
