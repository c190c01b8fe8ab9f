# SPDX-License-Identifier: Apache-2.0
"""A Generator behind HTTP: the OpenAI protocol, a page to talk on, and answers from documents."""
