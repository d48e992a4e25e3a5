SELECT pre_run FROM ops.releases WHERE id = %s
