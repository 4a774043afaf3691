package apid

// Remember sets how many changes a replica keeps for watches.
func Remember(changes int) func(*Config) {
	return func(c *Config) { c.remember = changes }
}
