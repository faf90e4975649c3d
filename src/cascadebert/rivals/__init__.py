"""What a cascade is measured against: early exits of one network.

One file a method, each with the sections and equations of its paper:
:mod:`~cascadebert.rivals.first_layers`, :mod:`~cascadebert.rivals.deebert`,
:mod:`~cascadebert.rivals.shallow_deep`, :mod:`~cascadebert.rivals.pabee` and
:mod:`~cascadebert.rivals.berxit`. They share :mod:`~cascadebert.rivals.network`, an encoder with an
exit after every layer, and :mod:`~cascadebert.rivals.regrouping`, which runs it.
"""
