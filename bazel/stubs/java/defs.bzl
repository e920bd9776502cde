"""Bazel's own Java rules, under the names that rules_java gives them."""

java_import = native.java_import
java_runtime = native.java_runtime
java_toolchain = native.java_toolchain
