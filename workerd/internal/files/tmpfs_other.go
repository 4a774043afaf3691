//go:build !linux

package files

import "errors"

func ensureTmpfs(string) error { return errors.New("it needs Linux") }
