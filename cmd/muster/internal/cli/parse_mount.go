package cli

import (
	"encoding/csv"
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/docker/go-units"
	"google.golang.org/protobuf/reflect/protoreflect"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

const (
	mountExample = "type=bind,source=/from,target=/to,readonly"
	mountHelp    = "mount: type=bind|volume|tmpfs,source=/from,target=/to,readonly; further keys: consistency, bind-propagation, bind-recursive, bind-create-src, " +
		"volume-driver, volume-opt=KEY=VALUE, volume-label=KEY=VALUE, volume-nocopy, volume-subpath, tmpfs-size, tmpfs-mode, tmpfs-options"
)

// parseMount reads Docker's "type=bind,source=/a,target=/b,readonly": a line of CSV, in
// which a value with commas stands in quotes.
func parseMount(v string) (*musterv1.Mount, error) {
	m := &musterv1.Mount{Type: musterv1.Mount_VOLUME}
	fields, err := csv.NewReader(strings.NewReader(v)).Read()
	if err != nil {
		err = fmt.Errorf("want %s; put a value that has commas in quotes, together with its key", mountExample)
	}
	for _, field := range fields {
		if err == nil {
			err = setMountField(m, field)
		}
	}
	if err == nil && m.Target == "" {
		err = errors.New("target is missing: want " + mountExample)
	}
	if err != nil {
		return nil, usage("--mount: %q: %w", v, err)
	}
	return m, nil
}

// setMountField sets what "key=value", or a key alone, stands for.
func setMountField(m *musterv1.Mount, text string) error {
	key, value, given := strings.Cut(text, "=")
	key = strings.ToLower(key)
	set := func(path string, v protoreflect.Value) {
		inner, field := fieldOf(m.ProtoReflect(), path)
		inner.Set(field, v)
	}
	switch key {
	case "type":
		return setMountType(m, value)
	case "source", "src":
		m.Source = value
		if strings.HasPrefix(value, ".") {
			// A path of this machine, as Docker has it.
			absolute, err := filepath.Abs(value)
			if err != nil {
				return fmt.Errorf("%s: %w", key, err)
			}
			m.Source = absolute
		}
	case "bind-recursive":
		switch value {
		case "enabled":
		case "disabled":
			set("bindOptions.nonRecursive", protoreflect.ValueOfBool(true))
		case "writable":
			set("bindOptions.readOnlyNonRecursive", protoreflect.ValueOfBool(true))
		case "readonly":
			set("bindOptions.readOnlyForceRecursive", protoreflect.ValueOfBool(true))
		default:
			return fmt.Errorf("%s: %w", key, wantOneOf(value, []string{"enabled", "disabled", "writable", "readonly"}))
		}
	case "volume-label", "volume-opt":
		path := map[string]string{"volume-label": "volumeOptions.labels", "volume-opt": "volumeOptions.driverConfig.options"}[key]
		inner, field := fieldOf(m.ProtoReflect(), path)
		name, option, _ := strings.Cut(value, "=")
		if name == "" {
			return fmt.Errorf("%s: %q has no key; want %s=key=value", key, value, key)
		}
		inner.Mutable(field).Map().Set(protoreflect.ValueOfString(name).MapKey(), protoreflect.ValueOfString(option))
	case "tmpfs-size":
		bytes, err := units.RAMInBytes(value)
		if err != nil {
			return fmt.Errorf("%s: invalid size %q: want for example 64m", key, value)
		}
		set("tmpfsOptions.sizeBytes", protoreflect.ValueOfInt64(bytes))
	case "tmpfs-mode":
		mode, err := strconv.ParseUint(value, 8, 12)
		if err != nil {
			return fmt.Errorf("%s: invalid mode %q: want permission bits in octal, for example 1777", key, value)
		}
		set("tmpfsOptions.mode", protoreflect.ValueOfUint32(uint32(mode)))
	case "image-subpath":
		return errors.New("images cannot be mounted: copy the files into the image of the service")
	default:
		return setMountPlain(m, key, value, given)
	}
	return nil
}

func setMountType(m *musterv1.Mount, value string) error {
	if strings.EqualFold(value, "image") {
		return errors.New("type: images cannot be mounted: copy the files into the image of the service")
	}
	field := m.ProtoReflect().Descriptor().Fields().ByName("type")
	v, err := readValue(field, value)
	if err != nil {
		return fmt.Errorf("type: %w", err)
	}
	m.ProtoReflect().Set(field, v)
	return nil
}

// setMountPlain sets a field whose type says how its value is read.
func setMountPlain(m *musterv1.Mount, key, value string, given bool) error {
	path := map[string]string{
		"target": "target", "dst": "target", "destination": "target", "readonly": "readOnly", "ro": "readOnly", "consistency": "consistency",
		"bind-propagation": "bindOptions.propagation", "bind-nonrecursive": "bindOptions.nonRecursive", "bind-create-src": "bindOptions.createMountpoint",
		"volume-driver": "volumeOptions.driverConfig.name", "volume-nocopy": "volumeOptions.noCopy", "volume-subpath": "volumeOptions.subpath",
		"tmpfs-options": "tmpfsOptions.options",
	}[key]
	if path == "" {
		return fmt.Errorf("there is no %q; want %s", key, mountExample)
	}
	inner, field := fieldOf(m.ProtoReflect(), path)
	if field.Kind() == protoreflect.BoolKind && !given {
		value = "true"
	} else if !given {
		return fmt.Errorf("%s has no value: want %s=VALUE", key, key)
	}
	v, err := readValue(field, value)
	if err != nil {
		return fmt.Errorf("%s: %w", key, err)
	}
	inner.Set(field, v)
	return nil
}
