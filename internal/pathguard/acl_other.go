//go:build !linux

package pathguard

// accessList knows no access control lists on this system.
func accessList(string) (*acl, error) { return nil, nil }
