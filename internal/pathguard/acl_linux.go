package pathguard

import (
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// aclName is the extended attribute that holds a file's access control list.
const aclName = "system.posix_acl_access"

// The format of a POSIX access control list, which the kernel defines in
// include/uapi/linux/posix_acl.h and posix_acl_xattr.h.
const (
	aclVersion   = 2
	aclHeader    = 4
	aclEntrySize = 8

	tagUser     = 0x02
	tagGroupObj = 0x04
	tagGroup    = 0x08
	tagMask     = 0x10
	permWrite   = 0x02
)

// errACL is why an access control list cannot be judged.
var errACL = errors.New("the access control list has an unknown format")

// accessList returns the access control list of a file, or nil if it has none: then
// its permission bits say all.
func accessList(path string) (*acl, error) {
	buffer := make([]byte, 64<<10)
	n, err := unix.Lgetxattr(path, aclName, buffer)
	switch {
	case errors.Is(err, unix.ENODATA), errors.Is(err, unix.ENOTSUP):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("read the access control list of %s: %w", path, err)
	}
	return parseACL(buffer[:n])
}

// parseACL reads an access control list.
func parseACL(raw []byte) (*acl, error) {
	if len(raw) < aclHeader || binary.LittleEndian.Uint32(raw) != aclVersion || (len(raw)-aclHeader)%aclEntrySize != 0 {
		return nil, errACL
	}
	list := &acl{}
	mask := uint16(permWrite)
	for rest := raw[aclHeader:]; len(rest) > 0; rest = rest[aclEntrySize:] {
		tag, writes, id := binary.LittleEndian.Uint16(rest), binary.LittleEndian.Uint16(rest[2:])&permWrite != 0, int(binary.LittleEndian.Uint32(rest[4:]))
		switch {
		case tag == tagMask:
			mask = binary.LittleEndian.Uint16(rest[2:])
		case !writes:
		case tag == tagUser:
			list.users = append(list.users, id)
		case tag == tagGroup:
			list.groups = append(list.groups, id)
		case tag == tagGroupObj:
			list.owningGroup = true
		}
	}
	if mask&permWrite == 0 {
		return &acl{}, nil
	}
	return list, nil
}
